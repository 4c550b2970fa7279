"""The mathematics of the method, in pure torch: nothing here knows of clients on a network, files or configurations.

All functions accept leading batch dimensions (written ``...``), so one client and a stack of clients run the same code.
"""
