"""The report, part by part: what the catalog says, the charts, the episodes, the pictures, and the page itself."""
