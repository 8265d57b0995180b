"""What the measurements of spectra and of robustness both stand on."""
