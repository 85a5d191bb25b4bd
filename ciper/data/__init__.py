"""Photos, poses and samples: everything between a file and a tensor."""
