use std::sync::Arc;

use jiff::Timestamp;

use crate::boxes::{BoxRecord, MicroBox};
use crate::core::Core;
use crate::{BoxInfo, BoxSpec, RuntimeError};

/// Creates a box. It exists once its directory is complete on disk.
pub(crate) async fn create(core: Arc<Core>, spec: BoxSpec) -> Result<BoxInfo, RuntimeError> {
    spec.check()?;
    if let Some(check) = &core.payload_check {
        check.check(&spec.payload)?;
    }
    core.check_free_space().await?;
    let id = core.new_id();
    let name = spec.name.clone();
    if let Some(name) = &name {
        core.boxes.reserve_name(name, &id)?;
    }
    let uid = core.uids.reserve(&spec.payload, None);
    let uid = uid.inspect_err(|_| release_name(&core, name.as_deref()))?;
    let mut record = BoxRecord::new(id.clone(), Timestamp::now(), spec);
    record.uid = uid;
    let result = core
        .run_on_disk({
            let home = core.home.clone();
            let record = record.clone();
            move || home.create_box(&record.id, |dir| record.write(dir))
        })
        .await;
    if let Err(error) = result {
        release_name(&core, name.as_deref());
        core.uids.release(uid);
        return Err(error);
    }
    let dir = core.home.box_dir(&id);
    let (events, due) = (Arc::clone(&core.events), Arc::clone(&core.due));
    let bx = Arc::new(MicroBox::new(record, None, dir, events, due));
    core.boxes
        .insert(Arc::clone(&bx), MicroBox::publish_created);
    Ok(bx.info())
}

fn release_name(core: &Core, name: Option<&str>) {
    if let Some(name) = name {
        core.boxes.release_name(name);
    }
}
