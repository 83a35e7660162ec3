-- adopted(longest, {id, due}...) -> n: of what `adopt` has kept, what was taken is due when it was; what
-- somebody else took meanwhile ('') is theirs. A time further off than `longest` is no time.
local longest, n = assert(tonumber(ARGV[1])), 0
for i = 2, #ARGV, 2 do
  assert(string.match(ARGV[i], '^%d+$') and #ARGV[i] == 16 and (ARGV[i + 1] == '' or tonumber(ARGV[i + 1])))
end
check_types()
open_for_writing()
for i = 2, #ARGV, 2 do
  local id, due = ARGV[i], tonumber(ARGV[i + 1])
  if not due then
    -- If it was claimed meanwhile it goes its way, a copy.
    if redis.call('ZREM', RETRY, id) == 1 then
      redis.call('HDEL', MESSAGES, id)
      redis.call('HDEL', HISTORY, id)
      redis.call('HDEL', RECOVERED, id)
    end
  else
    n = n + 1
    if due < now or due > now + longest then due = now end
    if redis.call('ZSCORE', RETRY, id) and redis.call('HEXISTS', HISTORY, id) == 0 then
      redis.call('ZADD', RETRY, due, id)
    end
  end
end
return n
