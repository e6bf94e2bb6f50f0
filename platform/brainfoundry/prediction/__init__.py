"""Bulk prediction: scans of any layout in, lesion masks as a BIDS derivative out, on every device at hand."""
