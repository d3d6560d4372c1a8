"""`python -m pvt_hf COMMAND`, for launchers: `torchrun --nproc_per_node 2 -m pvt_hf COMMAND ...`."""

from .commands import main


if __name__ == "__main__":
    main()
