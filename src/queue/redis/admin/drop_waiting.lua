-- drop_waiting({origin, id}...) -> n: what waits for its endpoint is gone for good.
check_types()
open_for_writing()
local n = 0
for i = 1, #ARGV, 2 do
  local origin, id = ARGV[i], ARGV[i + 1]
  if redis.call('ZREM', WAITING, member(origin, id)) == 1 then
    redis.call('HDEL', MESSAGES, id)
    redis.call('HDEL', HISTORY, id)
    redis.call('HDEL', RECOVERED, id)
    if waiting_can_be_seen() then close_if_empty(origin) end
    n = n + 1
  end
end
return n
