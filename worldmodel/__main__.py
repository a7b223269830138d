"""`python -m worldmodel`, for torchrun: torchrun --nproc-per-node 2 -m worldmodel fit --config CONF."""

from worldmodel.cli import main

if __name__ == "__main__":
    main()
