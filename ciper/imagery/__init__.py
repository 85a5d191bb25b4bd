"""Aerial imagery from where it is published, as one georeferenced file.

fetch     the verb             source    addresses of tiles, keys kept secret
place     what was asked for   polite    when to ask, when to ask again, when to stop
grid      zooms and tiles      http      one request
tiles     download and cache   stac      items of a catalogue, read by window
picture   bytes to RGB         write     strips to a cloud-optimised GeoTIFF
"""
