"""`kdx report`: everything that an outputs folder holds as one HTML page."""
