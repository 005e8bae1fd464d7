"""The figures of a report: a drawing kit, and a file for each figure."""
