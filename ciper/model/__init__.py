"""The network: encoder, decoder, network, criterion; torch and numpy only."""
