"""The command `pvt-hf evaluate object-detection`, for launchers that take a file."""

from pvt_hf.commands.evaluate import main


if __name__ == "__main__":
    main("object-detection")
