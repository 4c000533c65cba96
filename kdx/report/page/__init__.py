"""`kdx report`: the content of an outputs folder as one HTML page."""
