"""The command `pvt-hf train-image-classification`, for launchers that take a file."""

from pvt_hf.commands.train import main


if __name__ == "__main__":
    main("image-classification")
