"""One module a command: it parses, calls one function and prints the path that was written."""
