//! Images in the format qcow2 that contain nothing yet: what is read comes from the base.
//!
//! The format is described in `docs/interop/qcow2.txt` of QEMU. The image does not name its base: a guest
//! that has taken over QEMU can write to the image, so the command line of QEMU names it.

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;

/// How much of the disk an entry of the first table describes.
const BYTES_PER_ENTRY: u64 = CLUSTER * (CLUSTER / 8);

/// The largest disk: QEMU accepts a first table of up to 32 MiB.
const MAX_BYTES: u64 = BYTES_PER_ENTRY * (32 << 20) / 8;

const REFCOUNT_TABLE: u64 = CLUSTER;
const REFCOUNT_BLOCK: u64 = 2 * CLUSTER;
const FIRST_TABLE: u64 = 3 * CLUSTER;

/// Counts have 16 bits.
const REFCOUNT_ORDER: u32 = 4;
const HEADER_BYTES: u32 = 104;

/// Returns an image of a disk with this size, or `None` if it is too large.
pub(super) fn empty(disk_bytes: u64) -> Option<Vec<u8>> {
    if disk_bytes > MAX_BYTES {
        return None;
    }
    // A disk has whole sectors.
    let disk_bytes = disk_bytes.next_multiple_of(512);
    let entries = u32::try_from(disk_bytes.div_ceil(BYTES_PER_ENTRY).max(1)).ok()?;
    let clusters = FIRST_TABLE / CLUSTER + (u64::from(entries) * 8).div_ceil(CLUSTER);
    let mut image = vec![0; usize::try_from(clusters * CLUSTER).ok()?];

    let mut header = b"QFI\xfb".to_vec();
    // The version, and no name of a base.
    for word in [3, 0, 0, 0, CLUSTER_BITS] {
        header.extend(word.to_be_bytes());
    }
    // Entries follow the method of encryption, which is 0, in one number.
    for long in [disk_bytes, entries.into(), FIRST_TABLE, REFCOUNT_TABLE] {
        header.extend(long.to_be_bytes());
    }
    // The clusters of the table of counts; no snapshots, and no features.
    for word in [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, REFCOUNT_ORDER, HEADER_BYTES] {
        header.extend(word.to_be_bytes());
    }

    image[..header.len()].copy_from_slice(&header);
    let mut put = |offset: u64, bytes: &[u8]| {
        let offset = offset as usize;
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(REFCOUNT_TABLE, &REFCOUNT_BLOCK.to_be_bytes());
    for cluster in 0..clusters {
        put(REFCOUNT_BLOCK + cluster * 2, &1_u16.to_be_bytes());
    }
    Some(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(image: &[u8], offset: usize) -> u64 {
        u64::from_be_bytes(image[offset..offset + 8].try_into().unwrap())
    }

    #[test]
    fn an_image_has_the_size_of_its_base_in_whole_sectors() {
        for (bytes, size) in [(0, 0), (1, 512), (512, 512), (1 << 40, 1 << 40)] {
            let image = empty(bytes).unwrap();
            assert_eq!(image[..8], *b"QFI\xfb\0\0\0\x03");
            assert_eq!(number(&image, 24), size);
        }
    }

    #[test]
    fn the_first_table_is_within_the_image_and_counted() {
        for bytes in [1, BYTES_PER_ENTRY, BYTES_PER_ENTRY + 1, 1 << 46, MAX_BYTES] {
            let image = empty(bytes).unwrap();
            let entries = u64::from(u32::from_be_bytes(image[36..40].try_into().unwrap()));
            assert_eq!(entries, bytes.div_ceil(BYTES_PER_ENTRY));
            assert_eq!(number(&image, 40), FIRST_TABLE);
            assert!(FIRST_TABLE + entries * 8 <= image.len() as u64);
            let counted = image[REFCOUNT_BLOCK as usize..FIRST_TABLE as usize]
                .chunks_exact(2)
                .take_while(|count| **count == [0, 1]);
            assert_eq!(counted.count() as u64, image.len() as u64 / CLUSTER);
        }
        assert_eq!(empty(MAX_BYTES + 1), None);
    }
}
