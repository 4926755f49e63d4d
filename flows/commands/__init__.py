"""The commands of `trajnote`, grouped as a user meets them; each parses, calls a plain function and prints."""

__all__: list[str] = []
