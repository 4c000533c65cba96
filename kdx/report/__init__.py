"""Tables and pages of finished runs, from their files alone: nothing here imports torch."""
