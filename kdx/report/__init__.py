"""The page and the plots of finished runs, from their files alone: nothing here imports torch."""
