"""What each migration of the catalog creates."""
