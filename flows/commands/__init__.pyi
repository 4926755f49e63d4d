from .output import print_lines

__all__ = ["print_lines"]
