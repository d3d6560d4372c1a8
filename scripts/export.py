"""The command `pvt-hf export`, for launchers that take a file."""

from pvt_hf.commands.export import main


if __name__ == "__main__":
    raise SystemExit(main())
