"""Values that JSON has no type for, numbers and nesting beyond bounds, and files that cannot be read as files."""
