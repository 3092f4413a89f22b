"""The report: one page that shows a run, with its figures as files."""

from jaxtransfer.report.page import write_report as write_report
