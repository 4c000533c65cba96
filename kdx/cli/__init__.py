"""The command line: one module for each command, and the tables that it prints."""
