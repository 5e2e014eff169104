#![no_main]

fuzz::target!(vmm_protocol::fuzz::frames);
