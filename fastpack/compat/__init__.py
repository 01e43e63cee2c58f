"""Stand-ins for other packers, under the names that their users know."""
