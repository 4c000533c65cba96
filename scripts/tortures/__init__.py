"""What kdx must survive: killed processes, damaged files, wrong command lines."""
