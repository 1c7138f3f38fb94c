"""The methods, a file each, with the formula at its head."""
