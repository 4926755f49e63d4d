"""Who answers requests: a file, a recording, a server, or a function; all speak the protocol of `protocol.py`."""
