"""The command `pvt-hf train-semantic-segmentation`, for launchers that take a file."""

from pvt_hf.commands.train import main


if __name__ == "__main__":
    main("semantic-segmentation")
