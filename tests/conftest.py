"""What every test shares: one thread per process, so that tests run side by side and sums have one order."""

import torch

torch.set_num_threads(1)
