"""Shards of a packed batch, on real processes."""

import socket

import torch

from tests.collate.ranks import exchange


def test_gathered_shards_are_the_whole():
    world_size = 2
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(exchange, (world_size, port), nprocs=world_size)
