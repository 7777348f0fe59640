	# A package does not put a link in the place of a directory: half of either system would run.
	while read -r name to; do
		path=/var/qmail/$name
		if [ -L "$path" ]; then
			if [ "$1" = "$UPGRADE" ] || [ "$(readlink "$path")" = "$to" ]; then continue; fi
		elif [ ! -e "$path" ]; then
			continue
		fi
		cat >&2 <<-END
			qmail-rs: $path is there, of a qmail that was installed by hand. Nothing was changed.
			To go over to this one: stop the old system, move its tree away (mv /var/qmail /var/qmail.old), and install again. Then
			    qmail import control /var/qmail.old
			    qmail import queue /var/qmail.old/queue
			take over its configuration and its queue, each message once (docs/migration.md has all steps and the way back).
		END
		exit 1
	done <<-END
		@CLASSIC@
	END
