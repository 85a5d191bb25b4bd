"""The parts of training: recipe, gradients, run, validation, mining, log; torch and numpy only."""
