//! Lists of boxes: which boxes they have, and in which order.

mod common;

use common::boxes::{open_runtime, remove_all, script, sleeping, start_box};
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxId, BoxStatus, ListOptions, Removal, VmmRuntime};

async fn ids(runtime: &VmmRuntime, options: &ListOptions) -> Vec<BoxId> {
    let boxes = runtime.list_with(options).await;
    boxes.into_iter().map(|info| info.id).collect()
}

fn all() -> ListOptions {
    ListOptions::default()
}

#[tokio::test]
async fn a_list_has_the_boxes_that_satisfy_all_conditions() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let web = sleeping().name("web-1").image("web").label("team", "a");
    let web = start_box(&runtime, web).await.id;
    let db = sleeping().name("db-1").label("team", "b").label("tier", "");
    let db = runtime.create(db).await.unwrap().id;
    let failed = start_box(&runtime, script("exit 1").label("team", "a"))
        .await
        .id;
    runtime.wait(&failed).await.unwrap();
    for (options, expected) in [
        (all(), vec![&web, &db, &failed]),
        (all().status(BoxStatus::Running), vec![&web]),
        (all().status(BoxStatus::Running).stopping(true), vec![]),
        (
            all()
                .status(BoxStatus::Configured)
                .status(BoxStatus::Failed),
            vec![&db, &failed],
        ),
        (all().stopping(false), vec![&web, &db, &failed]),
        (all().name("-1"), vec![&web, &db]),
        (all().image("web"), vec![&web]),
        (all().label("team", "a"), vec![&web, &failed]),
        (all().has_label("tier"), vec![&db]),
        (all().has_label("team").label("tier", "x"), vec![]),
        (all().label("team", "a").name("web"), vec![&web]),
    ] {
        let found = ids(&runtime, &options).await;
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{options:?}");
    }
    remove_all(&runtime).await;
}

#[tokio::test]
async fn pages_in_both_orders_have_every_box_once() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let mut created = Vec::new();
    // More than a list reads at a time.
    for number in 0..150 {
        let label = if number % 50 == 0 { "rare" } else { "common" };
        created.push(
            runtime
                .create(sleeping().label("kind", label))
                .await
                .unwrap()
                .id,
        );
    }
    for (kind, limit) in [("common", 7), ("common", 1000), ("rare", 2), ("none", 1)] {
        for newest_first in [false, true] {
            let mut expected = ids(&runtime, &all().label("kind", kind)).await;
            if newest_first {
                expected.reverse();
            }
            let mut options = all()
                .label("kind", kind)
                .newest_first(newest_first)
                .limit(limit);
            let mut found = Vec::new();
            loop {
                let page = ids(&runtime, &options).await;
                assert!(page.len() <= limit);
                found.extend(page.iter().cloned());
                match page.last() {
                    Some(last) => options = options.after(last.clone()),
                    None => break,
                }
            }
            assert_eq!(found, expected, "{options:?}");
        }
    }
    assert_eq!(ids(&runtime, &all()).await, created);
    assert!(ids(&runtime, &all().limit(0)).await.is_empty());
    // The box that the next page follows may have been removed.
    runtime.remove(&created[1], Removal::Ended).await.unwrap();
    let next = all().after(created[1].clone()).limit(1);
    assert_eq!(ids(&runtime, &next).await, created[2..3]);
}
