"""The command `pvt-hf app`, for launchers that take a file."""

from pvt_hf.commands.app import main


if __name__ == "__main__":
    main()
