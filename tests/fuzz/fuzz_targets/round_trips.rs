#![no_main]

fuzz::target!(vmm_protocol::fuzz::round_trips);
