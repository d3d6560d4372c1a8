"""The command `pvt-hf reproduce`, for launchers that take a file."""

from pvt_hf.commands.reproduce import main


if __name__ == "__main__":
    raise SystemExit(main())
