"""The same methods over a network, on Flower: what may leave a client, the client's side, the server's side."""
