"""Tables, curves, image grids and one HTML page, from plain data."""
