"""Galleries: rasters -> chips on one world-wide grid -> features on disk -> nearest neighbours."""
