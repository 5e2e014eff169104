#![no_main]

fuzz::target!(|input| {
    vmm_runtime::fuzz::box_json(input);
    vmm_runtime::fuzz::config(input);
});
