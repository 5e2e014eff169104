#![no_main]

fuzz::target!(|input| vmm_archive::fuzz::archives(&fuzz::SCRATCH_DIR, input));
