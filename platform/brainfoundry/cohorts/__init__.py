"""Which scans exist, who is in, who is out and why: manifests, the UK Biobank reader, the demo cohort."""
