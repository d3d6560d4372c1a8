"""The command `pvt-hf push`, for launchers that take a file."""

from pvt_hf.commands.push import main


if __name__ == "__main__":
    raise SystemExit(main())
