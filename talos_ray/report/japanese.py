"""The report's texts in Japanese, key for key those of `report.english`."""

TEXTS = {
    "title": "{run}、バージョン {number}",
    # 判定
    "is_base": "これは編集前のベースモデルです。",
    "gain": "対象タスクの正解率 {before:.3f} → {after:.3f}（{change:+.3f}）",
    "control_kept": "対照タスク {task} はベースの {kept:.1%} を維持",
    "forgotten": "{task} を忘却（ベース {before:.3f}、現在 {after:.3f}）",
    "no_target": "対象タスクは残っていません",
    "joint": "、",
    "pass": "合格：{words}。",
    "no_gate": "判定条件も対照タスクもありません：{words}。",
    "hold": "保留：{why}。{words}。",
    "open": "データ不足で判定できません：{why}。{words}。",
    "at_risk": "ゲートの設定が strict: false のため、条件を満たすと示されないまま使われています。{words}",
    "approved": "{by} が承認（理由：{reason}）。満たしていない条件：{why}。{words}。",
    "control_keep": "対照タスク {task} がベースの正解率を維持する割合",
    "target_keep": "対象タスク {task} がベースの正解率を維持する割合",
    "target_gain": "対象タスクの平均の伸び",
    "disentanglement": "平均の干渉誤差（disentanglement error）",
    "found": "{what}は {value:.3f}（{low:.3f}～{high:.3f}）、必要なのは {wanted:.3f}",
    "found_open": "{found}：判定にはテストデータがあと約 {more:,} 件から {most:,} 件必要",
    "found_open_end": "{found}：判定にはテストデータがあと {more:,} 件以上、場合によりその何倍も必要",
    "found_lost": "{found}：データ不足（増やしても判定できない可能性あり）",
    # 次にすること
    "next_base": "判断は不要です。すべての編集はこれと比べられ、バージョン 0 に戻せばこれに戻ります。",
    "undo": "完全に元へ戻す：<code>talos rollback RUN {number}</code>。",
    "look": "どの回答が変わったかを見る：<code>talos compare RUN 0 {number} --out changed.csv</code>。",
    "next_hold": (
        "使われていません。このままにするか、指摘された点を直してもう一度編集するか、それでも使う場合は <code>talos approve RUN {number} --by NAME --reason "
        "TEXT</code>。{look}"
    ),
    "next_open": (
        "暫定的に使われています。求めた水準を下回っている恐れがあります。テストデータを増やせば判定できます。"
        "ゲートを strict: true にすると、こうしたバージョンは保留されます。{look}{undo}"
    ),
    "next_pass": "妨げるものはありません。{look}{undo}",
    # 対象と対照
    "scores": "対象タスクと対照タスク",
    "scores_how": (
        "テストデータでの正解率と95%区間。統合モデルは対象タスクで上がり、対照タスクで保たれるべきもの。「単独」は各編集だけの値。「プローブ」は編集なしで得られる値で、ベースにタスク専用の線形ヘッドを付けたもの。"
        "統合モデルが専用ヘッドを持つ場合、「語」は固定ヘッドでの値です。"
    ),
    "balanced": "{tasks}のスコアは、クラスごとの正解率の平均（均衡正解率）です。少ないクラスも同じ重みで数えます。",
    "task": "タスク",
    "kind": "種類",
    "coefficient": "係数",
    "base": "ベース",
    "merged": "統合",
    "change": "変化",
    "single": "単独",
    "target": "対象",
    "control": "対照",
    "forgotten_kind": "忘却",
    "other": "その他",
    "by_class": "クラスごと",
    "by_class_how": "各タスクの正解率の内訳：そのクラスの入力のうち正しく答えた割合（再現率）、そのクラスと答えたもののうち正しい割合（適合率）、そして最も多く取り違えられたクラス。",
    "by_class_means": "均衡正解率（再現率の平均）{balanced:.3f}、マクロ F1 {f1:.3f}。",
    "by_class_calibration": "期待較正誤差 {error:.3f}（等幅の {bins} 区間）：答えの確率が、実際に正しい割合とどれだけずれているか。",
    "recall": "再現率",
    "precision": "適合率",
    "taken_for": "最も多い取り違え",
    "accuracy_test": "テストデータでの正解率",
    "plotted": "図に示すのは全{all}タスクのうち{n}タスク（対照タスクと、ベースからの改善が最も小さいタスク）です。表にはすべてを載せています。",
    "and_more": "ほか{n}件",
    "scores_plot": "タスクごとの正解率：ベース、統合モデル、単独の編集",
    # 判定条件
    "gate": "判定条件（ゲート）",
    "gate_how": (
        "設定ファイルがすべてのバージョンに求める条件。95 % 区間の全体が条件を満たせば合格です。区間が境界をまたぐときは、テストデータを増やせば判定できます。同じ条件のタスクが {together} 個以上あるときは、"
        "ホルムの方法で不合格を判定し、偶然だけでどれかが不合格になる確率を 1 個のときと同じに抑えます。"
    ),
    "condition": "条件",
    "wanted": "必要",
    "found_head": "実測",
    "result": "結果",
    "result_pass": "合格",
    "result_fail": "不合格",
    "result_open": "データ不足",
    "more_needed": "{result}、あと {more:,} 件から {most:,} 件必要",
    "more_needed_end": "{result}、あと {more:,} 件以上、場合によりその何倍も必要",
    "looked": "{number} 回目",
    "looks_how": "このテストデータは以前にも使われました。スコアの横の数字が何回目かを示します。区間は 1 回目の評価についてのものです。何度も見て選んだバージョンは、実際より良く見えます。",
    # 忘却
    "negation": "{task} をどう忘れさせたか",
    "negation_how": (
        "このタスクの差分の係数を、答えが偶然の水準になるように学習しました。他のタスクを変えない圧力を段階的に強め、他のすべてのタスクが検証データで {keep:.0%} を保つ範囲で最も低い正解率を選んでいます。"
        "点線は偶然の水準。"
    ),
    "beyond_how": (
        "正解率以外の確認：代わりに何と答えるか、特徴量に対する線形分類器がなお何点を取るか。ベースと同じ高さなら、知識は消えておらず、このタスクの言葉から届かないだけです。線形分類器：ベース {probe_base:.3f}、"
        "以前 {probe_before:.3f}、現在 {probe_now:.3f}。{steps} ステップ再学習した後の正解率：ベースから {again_base:.3f}、以前から "
        "{again_before:.3f}、現在から {again_now:.3f}。すぐに戻るものは消えていなかったということです。"
    ),
    "class": "クラス",
    "inputs": "入力数",
    "predicted_base": "ベースの予測",
    "before": "以前",
    "now": "現在",
    "kept_least": "最も下がった他のタスク",
    "accuracy_kept": "正解率・維持率",
    "negation_plot": "圧力ごとの、忘却したタスクの正解率と他のタスクの維持率",
    # 密な学習との比較
    "dense": "全重みの学習との比較",
    "dense_how": "同じタスク、同じステップ数とバッチで、対象となる全重みを学習し、同じ探索で統合したもの（密なタスク算術）。どちらが勝ってもそのまま示します。",
    "mean_targets": "対象タスクの平均",
    "sparse_arm": "疎な編集",
    "dense_arm": "密",
    "zero_shot": "ゼロショット",
    "single_task": "単独タスク",
    "normalized": "正規化した統合の値",
    "control_row": "対照タスク {task} の維持率",
    "training_time": "学習時間（全タスクの合計）",
    "stored": "保存した差分",
    "state": "オプティマイザの値・勾配・モーメント",
    "may_change": "変更できる重み",
    # マスクの選択
    "choice": "マスクの選び方",
    "choice_how": (
        "学習全体の {share:.0%} ずつの短い学習を行い、統合して検証データで採点（良い順）。検証データの値には不確かさがあるため、最良から標準誤差 {tolerance:g} 倍以内のうち、"
        "計算が最も少ないものを最後まで学習しました：{chosen}。所要時間 {seconds:.0f} 秒（学習とは別）。&xi; は干渉誤差（他の編集によって変わる予測の割合）。"
    ),
    "setting": "{strategy}、{granularity}、全重みの {keep:.0%}（層の {layers:.0%} から）、学習率 &times; {lr:g}",
    "share": "割合",
    "learning_rate": "学習率",
    "layers": "層",
    "step_work": "1 ステップの計算",
    "kept_head": "対照の維持率",
    "holds": "維持",
    "yes": "はい",
    "no": "いいえ",
    "trade_off_how": "編集をどこまで局所的にできるか：変更できる重みの割合ごとの同じ値。白抜きの点では対照タスクが下がっています。",
    "share_may_change": "変更できる重みの割合",
    "accuracy_validation": "検証データでの正解率",
    "trade_off_plot": "重みの割合ごとの検証正解率（点：統合、横線：単独）",
    # 変更の範囲
    "impact": "変更の及ぶ範囲",
    "impact_how": (
        "{tensors} 個のテンソルの {changed:,} 個の重みがベースと異なり、それ以外はビット単位で同じです。棒は、テンソルの変化の大きさをそれ自身の大きさで割ったもの。長い棒は、"
        "このバージョンがよく使う部分です。"
    ),
    "impact_axis": "変化の大きさ / ベースの大きさ",
    "impact_plot": "変更された各テンソルの相対的な変化",
    "flipped_how": "ベースと回答が異なるテスト入力。対象タスクではそれが目的、対照タスクでは代償です（正解率が同じ場合でも）。",
    "flipped": "変わった回答",
    "imported_how": "次の編集は外部のチェックポイントから取り込んだもので、マスクの外の変化は捨てています（変化の大きさの二乗に対する割合）。上の「単独」の値が、残ったものの実力です。",
    "imported": "マスク外で失われた割合",
    "checkpoint": "チェックポイント",
    # 頑健性
    "robustness": "壊れやすくなったか",
    "robustness_how": "同じテスト入力を少し劣化させたもの（シード固定）。平均すると、ベースは対象タスクの正解率の {base:.1%}、このバージョンは {merged:.1%} を保ちます。",
    "test_data": "テストデータ",
    # 推移
    "drift": "バージョンごとの推移",
    "drift_how": "これまでの全バージョンの、全タスクのテスト正解率。左から右へ下がる対照タスクの線は、編集を重ねた代償です。",
    "drift_plot": "バージョンごとの全タスクの正解率",
    "version": "バージョン",
    "watched": "後から届いたデータでの値",
    "watched_how": "このバージョンの使用開始後に <code>talos watch</code> が測ったもの：新しいデータでの、ベースとこのバージョンの正解率。",
    "data": "データ",
    "when": "日時",
    # 探索
    "search": "係数の探索",
    "search_how": "各点は検証データで評価した候補。白抜きは対照タスクが下がったもので、選ばれません。{words}",
    "tried": "{n} 個の候補を試し、最良のものを上の表で使っています。",
    "methods": "統合手法ごとの値：{methods}。",
    "mean_coefficient": "係数の平均",
    "normalized_validation": "正規化した検証正解率",
    "sparse": "疎",
    "search_plot": "係数の平均ごとの、全候補の正規化した検証正解率",
    # 干渉
    "probe": "プローブ",
    "merged_words": "語",
    "probe_enough": "編集なしの線形プローブで足りるタスク：{tasks}",
    "not_learnt": "学習できなかったタスク：{tasks}",
    "from_to": "{task}（{before:.3f} から {after:.3f}）",
    "gain_kept": "単独の編集による伸びの維持が最も少ないのは {task} の {share:.0%}",
    "not_all": "条件に含まれていないため使用中ですが：{words}。",
    "learned": "学習による統合",
    "learned_how": (
        "{count:,} 個の係数（{granularity}）。学習の手本は{teacher}。対照タスクを保つ圧力は {pressure:g}。専用ヘッド：{heads}。図は各テンソルでのタスクごとの平均係数で、"
        "濃いほどその編集を多く使います。"
    ),
    "teacher_edits": "単独の編集の答え",
    "teacher_labels": "正解ラベル",
    "teacher_both": "単独の編集の答えと正解ラベル",
    "by_task": "タスクごとに一つ",
    "by_group": "タスクと層のグループごとに一つ",
    "by_tensor": "タスクとテンソルごとに一つ",
    "by_row": "タスクと出力行ごとに一つ",
    "learned_plot": "タスクとテンソルごとの平均係数",
    "tensor": "テンソル",
    "reached": "係数の細かさごとの値：{reached}。",
    "none": "なし",
    "learning_plot": "学習による統合の損失の推移",
    "pressure": "他のタスクを保つ圧力",
    "merge_seconds": "統合の探索に {value:.1f} 秒かかりました。",
    "xi": "編集は互いに干渉するか",
    "xi_how": (
        "あるタスク（行）の検証データのうち、別の編集（列）が加わると予測が変わるものの割合（このバージョンの係数で）。薄いほど良く、濃いマスは競合する二つのタスク、濃い行は他のすべてから影響を受けるタスクです。"
        "他のすべての編集を合わせると平均 {mean:.1%} の予測が変わり、最大は {worst}（{most:.1%}）です。"
    ),
    "joins": "加わる編集",
    "inputs_of": "入力の属するタスク",
    "xi_plot": "タスクの組ごとの干渉誤差",
    # 学習
    "training": "学習",
    "training_how": "下がる曲線は学習が進んでいることを示します。平らなままなら、ステップ数か学習率の見直しが必要です。",
    "step": "ステップ",
    "loss": "学習損失",
    "training_plot": "ステップごとの全タスクの学習損失",
    # マスク
    "mask": "変更できる重み",
    "mask_how": "対象となる {total:,} 個の重みのうち {k:,} 個（{strategy}）。それ以外は全バージョンでベースとビット単位で同じです。長い棒は、モデルの出力が鈍感なテンソルです。",
    "mask_plot": "テンソルごとのマスクされた重みの割合",
    "stability_how": (
        "マスクの確かさ：各点は、標本を一群加える前の推定との一致度です。"
        "設定の calibration.stable に達するとその回は終わります。最後まで上がり続ける曲線は、標本が足りないことを示します。"
    ),
    "waves": "標本の群",
    "overlap_before": "前の推定との一致度",
    "round": "第 {n} 回",
    "stability_plot": "標本の群ごとの、マスクの推定の一致度",
    "overlap_how": "共有マスクと、各タスクが単独で選んだはずのマスクとの一致度（Jaccard）。1 に近ければ共有の損はなく、0 に近ければそのタスクには合っていません。",
    "overlap": "一致度",
    # 費用
    "took": "所要時間と資源",
    "in_all": "合計 {seconds:.1f} 秒。",
    "first_step": "最初の学習ステップまで {value:.1f} 秒。",
    "object_store_peak": "Ray のオブジェクトストアは全ノード合計で最大 {value:,} バイト。",
    "stage": "段階",
    "wall_time": "経過時間",
    "at_once": "同時実行",
    "facts": "フィンガープリントとソフトウェア",
    "what": "項目",
    "value": "値",
    "model": "モデル",
    "made": "作成日時",
    # 変更調書
    "dossier_title": "モデル変更調書：{run}、バージョン {number}",
    "dossier_how": (
        "モデルの何を、誰が、どのデータで、どれだけの計算で変更し、結果がどうなったかの記録です。{made} に実行記録から作成しました。同じ数値は、このページと同じ場所の "
        "<code>dossier.json</code> にもあります。"
    ),
    "in_force": "このバージョンは現在使われています。",
    "not_in_force": "このバージョンは現在使われていません。",
    "not_stated": "記載なし",
    "not_known": "不明",
    "not_counted": "未計測",
    "changed_head": "変更の内容",
    "model_licence": "ベースのライセンス",
    "parameters": "モデルのパラメータ数",
    "mask_share": "対象となる {total:,} 個のうち {k:,} 個（{share:.2%}）",
    "how_chosen": "選び方",
    "weights_changed": "ベースと異なる重み",
    "changed_of": "{tensors:,} 個のテンソルの {changed:,} 個。それ以外の重みはビット単位でベースと同じ",
    "stored_bytes": "保存した編集のバイト数",
    "merge_method": "統合手法",
    "edits": "編集とその係数",
    "people": "変更の経緯と担当者",
    "people_how": (
        "このバージョンに至るまでの操作と、その後このバージョンに対して行われた操作を、履歴のとおりに示します。アカウント名は各マシンから得たものです。"
        "署名がある場合はその鍵も示します。"
    ),
    "event": "番号",
    "operation": "操作",
    "by_whom": "アカウント",
    "remark": "氏名・理由・鍵",
    "approval": "承認",
    "approved_by": "判定条件を満たしていませんが、{by} が {time}（UTC）に承認しました（アカウント {user}@{host}）。理由：{reason}",
    "signed_by": "承認後、次の鍵で記録に署名されています：{keys}",
    "not_signed": "承認に署名はありません。",
    "held_unapproved": "判定条件により保留中で、まだ承認されていません。",
    "no_approval": "承認は不要でした（判定条件を満たしているか、条件が設定されていません）。",
    "data_head": "データ",
    "data_how": (
        "編集は学習データで学習し、検証データで選び、テストデータで評価しています。対照タスクは学習の対象ではなく、性能を保つためのものです。"
        "ライセンスは、この調書の作成者が申告したもの、またはデータに添えられたカードの記載です。"
    ),
    "source": "出所",
    "licence": "ライセンス",
    "n_train": "学習",
    "n_validation": "検証",
    "n_test": "テスト",
    "state_of_data": "現在のデータ",
    "data_as_recorded": "記録どおり",
    "data_changed": "記録と相違",
    "data_unreachable": "参照不可",
    "compute": "変更に要した計算量",
    "compute_how": (
        "このバージョンに至るまでの処理全体（以前のバージョンの分を含む）の浮動小数点演算数です。各タスクの更新 1 回、較正の 1 バッチ、順伝播 1 回をあらためて実行し、"
        "行列積・アテンション・畳み込みの演算を数えました（積と和で 2 演算）。それぞれの回数は記録によります。要素ごとの演算と、途中で打ち切った分や障害後にやり直した分は含みません。"
        "統合で係数を引き継いだタスクも学習し直したものとして数え、学習ではない評価の分も加えているため、合計はその分だけ大きくなっています。"
    ),
    "operations": "演算数",
    "stage_choice": "短い学習によるマスクの選択（上限）",
    "stage_calibration": "マスクの較正",
    "stage_training": "編集の学習",
    "stage_merge": "統合の探索",
    "stage_scoring": "テストデータでの評価",
    "stages_in_all": "変更全体",
    "dense_beside": "比較のために行った全重みの学習（変更には含まない）",
    "updates": "更新回数",
    "inputs_each": "1 回の入力数",
    "per_update": "1 回の演算数",
    "third_head": "3 分の 1 の基準",
    "third_rule": (
        "欧州委員会のガイドラインは目安として次の基準を示しています。汎用 AI モデルを変更した者は、変更のための学習の計算量が元のモデルの学習の計算量の 3 分の 1 を超える場合、"
        "変更後のモデルの提供者とみなされます。"
    ),
    "base_compute": "ベースの学習の計算量（申告）",
    "third_of_base": "その 3 分の 1",
    "share_of_base": "ベースに対する変更の割合",
    "over_third": "3 分の 1 を超える",
    "under_third": "3 分の 1 を超えない",
    "third_unknown": (
        "ベースの学習の計算量は申告されていません。変更した者がこれを知ることも見積もることもできない場合、ガイドラインは代わりに次のしきい値の 3 分の 1 を用います。"
    ),
    "stand_in": "元のモデルの区分",
    "third": "しきい値の 3 分の 1",
    "stand_in_general_purpose": "その他の汎用 AI モデル（10^23）",
    "stand_in_systemic_risk": "システミックリスクのある汎用 AI モデル（10^25）",
    "no_law": (
        "ここに示すのは数値だけです。ベースが汎用 AI モデルに当たるか、この基準から誰にどのような義務が生じるかは、法律の専門家の判断に委ねます。"
    ),
    "dossier_scores_how": "テストデータでの正解率と 95 % 区間：ベース、このバージョン、各編集を単独で使った場合。",
    "limits": "限界と注意点",
    "limit_beyond": "数値はこれらのテストデータについてのものです。対照タスク以外にベースができることは測定していません。ベースの偏りは残っています。",
    "limit_no_control": "対照タスクが指定されていないため、編集がその他の能力に与えた影響は分かりません。",
    "limit_held": "判定条件により保留中で、まだ承認されていません。",
    "limit_unmet": "判定条件 {all} 件のうち {n} 件は、満たしていないか、満たすと判定できません。",
    "limit_not_learnt": "学習できなかった（ベースを上回らない）タスク：{tasks}。",
    "limit_probe": "編集前のベースにタスク専用の線形ヘッドを付けたものより良いとは示されていないタスク：{tasks}。",
    "limit_forgotten": "意図的に忘却させたタスク：{tasks}。正解率は下がりましたが、知識を復元できないことの証明ではありません。",
    "limit_looks": "以前のバージョンの評価にも使われたテストデータのため、数値が実際より良く見える可能性のあるタスク：{tasks}。",
    "limit_no_robustness": "劣化した入力での性能は評価していません。",
    "limit_unreachable": "データを参照できなくなったため、件数を確認できなかったタスク：{tasks}。",
    "limit_changed": "データが記録と異なるため、件数を確認できなかったタスク：{tasks}。",
    "limit_no_licence": "データのライセンスの記載がないタスク：{tasks}。",
    "limit_note": "{task} のデータ：{note}",
    "limit_imported": (
        "{task} の編集は外部で学習されたもので、その計算量は不明のため含んでいません。変化の {lost:.1%} はマスクの外にあり、取り込んでいません。"
    ),
    "limit_not_counted": "演算数を計測できませんでした：{why}",
    "hashes": "ハッシュ値",
    "hashes_how": (
        "SHA-256。記録のハッシュ値は、{events:,} 件の履歴と、そこに記された全ファイルに及びます。後日 <code>talos verify RUN --expect HASH</code> "
        "を実行すると、履歴に今も含まれていることを確かめられます。"
    ),
    "record": "記録（最新の履歴）",
    "delta_of": "{task} の編集",
    "data_of_train": "{task} の学習データ",
    "data_of_validation": "{task} の検証データ",
    "data_of_test": "{task} のテストデータ",
}
