"""The command `pvt-hf predict`, for launchers that take a file."""

from pvt_hf.commands.predict import main


if __name__ == "__main__":
    main()
