"""What a guest is given to boot and install from: downloads, ISO and floppy images, the HTTP server."""
