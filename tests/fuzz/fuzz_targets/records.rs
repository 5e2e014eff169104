#![no_main]

fuzz::target!(|input| vmm_protocol::fuzz::records(&fuzz::SCRATCH_DIR, input));
