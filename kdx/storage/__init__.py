"""Files that are whole or absent: written atomically, with checksums and locks."""
