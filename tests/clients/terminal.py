"""Runs a program in a terminal of its own, and prints what a person sees there: one line of JSON for each picture that differs
from the one before, then one for the end. Fails at an escape sequence that it does not know.

Usage: terminal.py '{"command": [...], "rows": 10, "columns": 40, "until": "text"}': it presses Ctrl-C once the screen has this
text.
"""

import codecs
import fcntl
import json
import os
import pty
import re
import struct
import sys
import termios

given = json.loads(sys.argv[1])
ROWS, COLUMNS = given["rows"], given["columns"]
# An escape sequence, the beginning of one at the end of what was read, or a character.
TOKEN = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|(\x1b(?:\[[?0-9;]*)?$)|(.)", re.DOTALL)


class Screen:
    def __init__(self):
        self.cells = [[" "] * COLUMNS for _ in range(ROWS)]
        self.row = 0
        self.column = 0
        self.cursor_is_shown = True
        # How many lines left the screen at its top, and how many characters did not fit into their line.
        self.scrolled = 0
        self.wrapped = 0

    def lines(self):
        return ["".join(line).rstrip() for line in self.cells]

    def write(self, character):
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self.row += 1
            if self.row == ROWS:
                self.row -= 1
                self.scrolled += 1
                self.cells = self.cells[1:] + [[" "] * COLUMNS]
        elif self.column == COLUMNS:
            self.wrapped += 1
        else:
            self.cells[self.row][self.column] = character
            self.column += 1

    def control(self, numbers, command):
        match command, numbers:
            case "H", _:
                row, _, column = numbers.partition(";")
                self.row, self.column = int(row or 1) - 1, int(column or 1) - 1
            case "K", "2":
                self.cells[self.row] = [" "] * COLUMNS
            case "J", "2":
                self.cells = [[" "] * COLUMNS for _ in range(ROWS)]
            case "J", "0":
                self.cells[self.row][self.column :] = [" "] * (COLUMNS - self.column)
                self.cells[self.row + 1 :] = [[" "] * COLUMNS for _ in range(ROWS - self.row - 1)]
            case ("h" | "l"), "?25":
                self.cursor_is_shown = command == "h"
            case _:
                raise ValueError(f"unknown escape sequence: {numbers}{command}")


pid, terminal = pty.fork()
if pid == 0:
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    os.execv(given["command"][0], given["command"])

screen = Screen()
decoder = codecs.getincrementaldecoder("utf-8")()
rest, shown, is_interrupted = "", None, False
while True:
    try:
        read = os.read(terminal, 65536)
    except OSError:
        # How Linux reports that the program has closed the terminal.
        break
    if not read:
        break
    text, rest = rest + decoder.decode(read), ""
    for numbers, command, beginning, character in TOKEN.findall(text):
        if beginning:
            rest = beginning
        elif character:
            screen.write(character)
        else:
            screen.control(numbers, command)
            # The last thing that is done for a picture.
            is_picture = (numbers, command) == ("0", "J")
            if is_picture and screen.lines() != shown:
                shown = screen.lines()
                print(json.dumps({"lines": shown}), flush=True)
    if not is_interrupted and any(given["until"] in line for line in shown or []):
        is_interrupted = True
        os.write(terminal, b"\x03")

_, status = os.waitpid(pid, 0)
end = {
    "code": os.waitstatus_to_exitcode(status),
    "cursor_is_shown": screen.cursor_is_shown,
    "scrolled": screen.scrolled,
    "wrapped": screen.wrapped,
}
print(json.dumps(end), flush=True)
